"""MLPerf's multi-hot Criteo: bags of ids from one id in each table, and its files.

MLPerf Training's `dlrm_dcnv2` has fixed numbers of ids for each table. They are made from the
one-hot data by a table of random numbers for each feature, so that equal ids get equal bags.

`random_bags` draws those numbers, `materialise` writes a split folder with bags from one without,
`day_files` reads and writes `day_N_sparse_multi_hot.npz` and its companions.
"""

from __future__ import annotations

# Of MLPerf's reference, mlcommons/training recommendation_v2/torchrec_dlrm.
MLPERF_HOTNESS = (
    *(3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1),
)
MLPERF_TABLE_SIZES = (
    *(40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10),
    *(2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36),
)
