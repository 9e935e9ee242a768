"""Files and their descriptions, shared by ingest, training and the tools."""
