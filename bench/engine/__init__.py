"""A reduced forward pass: how a method is put to work in a model, and taken out again."""
