"""Runs MLPerf's training benchmark `dlrm`, checks the logs, and packs them for a submission."""
