"""Shards to packs: plan them from the lengths, read, tokenise and collate them."""
