"""The plan: ranks for each layer, from an audit and a cache budget."""
