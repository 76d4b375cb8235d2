"""The report's section on fine-tuned models."""
