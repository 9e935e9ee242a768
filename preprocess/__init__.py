"""Raw click logs to record files, and synthetic raw logs to try them on."""
