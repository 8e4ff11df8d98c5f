"""The reference pages in docs/, made from what they describe."""
