"""What CrossGET's parts and its training bring: fine-tune, measure, report."""
