"""What is kept of a run: records, their store, the machine and the profile they belong to."""
