"""How the embedded models were trained, and the study of CrossGET's parts: they use the package."""
