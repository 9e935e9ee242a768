package dlrm.ingest;

import java.io.Serializable;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;

/**
 * The layout of staged rows: the label, the dense columns, the value of each slot, and one bit for
 * each slot that marks a missing value; all are little-endian int32 words.
 *
 * <p>A table has one slot, or, if it has bags of ids, as many as a bag may have ids; a bag fills the
 * first of them. A value is the unsigned number of a field after the modulus, before it gets an id.
 */
final class Layout implements Serializable {
  private static final long serialVersionUID = 1L;

  final int dense;
  final int slots;
  final int rowBytes;

  /** The table of each slot. */
  final int[] tables;

  /** The first slot of each table, and the number of slots. */
  final int[] firstSlots;

  /** Whether each table has bags. */
  final boolean[] bags;

  /**
   * @param dense number of dense columns, with the words of weights
   * @param tables for each table the number of its slots if it has bags, otherwise 0
   */
  Layout(int dense, String tables) {
    long[] sizes = Numbers.parse(tables);
    this.dense = dense;
    this.bags = new boolean[sizes.length];
    this.firstSlots = new int[sizes.length + 1];
    for (int table = 0; table < sizes.length; table++) {
      bags[table] = sizes[table] > 0;
      firstSlots[table + 1] = firstSlots[table] + (int) Math.max(1, sizes[table]);
    }
    this.slots = firstSlots[sizes.length];
    this.tables = new int[slots];
    for (int table = 0; table < sizes.length; table++) {
      Arrays.fill(this.tables, firstSlots[table], firstSlots[table + 1], table);
    }
    this.rowBytes = missing(slots + 31);
  }

  /** Returns the offset in a row of the value of a slot. */
  int value(int slot) {
    return 4 * (1 + dense + slot);
  }

  /** Returns the offset in a row of the word that has the missing bit of a slot. */
  int missing(int slot) {
    return 4 * (1 + dense + slots + (slot >> 5));
  }

  boolean isMissing(ByteBuffer rows, int row, int slot) {
    return (rows.getInt(row + missing(slot)) >>> (slot & 31) & 1) != 0;
  }

  /** Returns the number of ids in a row's bag of a table. */
  int ids(ByteBuffer rows, int row, int table) {
    int slot = firstSlots[table];
    while (slot < firstSlots[table + 1] && !isMissing(rows, row, slot)) {
      slot++;
    }
    return slot - firstSlots[table];
  }

  static ByteBuffer words(byte[] bytes) {
    return ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
  }
}
