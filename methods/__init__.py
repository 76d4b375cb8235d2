"""Token-reduction methods, one file each; the registry finds them by itself."""
