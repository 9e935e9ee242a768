"""From a checkpoint to a server: export, quantisation, the scorer, the server and LoadGen."""
