"""What is kept of a run: records, their store, and published figures beside them."""
