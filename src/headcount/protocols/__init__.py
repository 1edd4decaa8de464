"""Two-party protocols: what a layer of attention makes two parties say to each other, bit by bit."""
