package dlrm.ingest;

import java.io.Serializable;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * Staged rows as bytes: of each row the label, the dense columns, the values of the tables and a
 * bit for each table whose value is none; all little-endian int32.
 *
 * <p>Values are what the rules make of a field, before ids; a value is unsigned.
 */
final class Layout implements Serializable {
  private static final long serialVersionUID = 1L;

  final int dense;
  final int tables;
  final int rowBytes;

  Layout(int dense, int tables) {
    this.dense = dense;
    this.tables = tables;
    this.rowBytes = missing(tables + 31);
  }

  /** Where the value of a table stands in a row. */
  int value(int table) {
    return 4 * (1 + dense + table);
  }

  /** Where the word with the missing bit of a table stands in a row. */
  int missing(int table) {
    return 4 * (1 + dense + tables + (table >> 5));
  }

  boolean isMissing(ByteBuffer rows, int row, int table) {
    return (rows.getInt(row + missing(table)) >>> (table & 31) & 1) != 0;
  }

  static ByteBuffer words(byte[] bytes) {
    return ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
  }
}
