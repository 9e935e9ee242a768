package dlrm.ingest;

import java.io.Serializable;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * The layout of staged rows: the label, the dense columns, the value of each table, and one bit for
 * each table that marks a missing value; all are little-endian int32 words.
 *
 * <p>A value is the unsigned number of a field after the modulus, before it gets an id.
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

  /** Returns the offset in a row of the value of a table. */
  int value(int table) {
    return 4 * (1 + dense + table);
  }

  /** Returns the offset in a row of the word that has the missing bit of a table. */
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
