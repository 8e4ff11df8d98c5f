"""Does this program compute what the official programs do? Golden numbers against the shipped classes."""
