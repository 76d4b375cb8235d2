"""From records to tidy data frames, with the statistics that tables and figures share."""
