"""The operators themselves: softmax attention over pairs, triples, tuples, trees and triangles."""
