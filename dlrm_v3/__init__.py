"""DLRMv3: the sequential recommender of MLPerf Inference on the tables of `dlrm`."""
