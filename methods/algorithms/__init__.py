"""The pure algorithms of methods whose file would be long with them: tensors in, tensors out."""
