"""The figures of the learning lab, one file each; ``registry`` lists them."""
