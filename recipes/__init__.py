"""How the embedded models were trained: scripts that use the package and are not part of it."""
