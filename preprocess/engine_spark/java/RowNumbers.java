package dlrm.ingest;

import java.io.Serializable;
import org.apache.spark.sql.Row;

/** Numbers the good rows over all files. */
final class RowNumbers implements Serializable {
  private static final long serialVersionUID = 1L;

  private final long[][] before;

  /** @param offsets a line for each file: the rows, in all files, before each of its partitions */
  RowNumbers(String offsets) {
    String[] lines = offsets.split("\n", -1);
    this.before = new long[lines.length][];
    for (int file = 0; file < lines.length; file++) {
      before[file] = Numbers.parse(lines[file]);
    }
  }

  /** Returns the number of the first row of a chunk. */
  long first(Row chunk) {
    return before[chunk.getInt(0)][chunk.getInt(1)] + chunk.getLong(2);
  }
}
