"""MLPerf's inference benchmark of DLRMv3: LoadGen on a trained model and the stream's requests."""
