package dlrm.ingest;

import java.io.Serializable;
import java.nio.ByteBuffer;
import java.util.List;
import org.apache.spark.sql.Row;

/**
 * Finds the ids of the frequent values of each table; every worker holds them.
 *
 * <p>One array holds a hash table for each table. A slot is `value << 32 | id + 1`, so that one
 * access returns both; 0 marks an empty slot. At most half of the slots are used. The array
 * itself is not a field, because it is sent as a broadcast variable. Of a table without a
 * dictionary, each value is its own id.
 */
public final class HotIds implements Serializable {
  private static final long serialVersionUID = 1L;
  private static final int MULTIPLIER = 0x9E3779B1;

  private final int[] starts;
  private final int[] bits;

  /** @param sizes for each table, the number of its frequent values; -1 without a dictionary */
  public HotIds(String sizes) {
    long[] counts = Numbers.parse(sizes);
    this.starts = new int[counts.length + 1];
    this.bits = new int[counts.length];
    for (int table = 0; table < counts.length; table++) {
      if (counts[table] < 0) {
        starts[table + 1] = starts[table];
        continue;
      }
      bits[table] = 1;
      while (1L << bits[table] < 2 * counts[table]) {
        bits[table]++;
      }
      starts[table + 1] = starts[table] + (1 << bits[table]);
    }
  }

  /** Returns the array, filled from the output of `IdPacker`. */
  public long[] slots(List packs) {
    long[] slots = new long[starts[bits.length]];
    for (int i = 0; i < packs.size(); i++) {
      ByteBuffer words = Layout.words((byte[]) ((Row) packs.get(i)).get(0));
      while (words.hasRemaining()) {
        int table = words.getInt();
        int value = words.getInt();
        slots[slot(slots, table, value)] = (long) value << 32 | words.getInt() + 1;
      }
    }
    return slots;
  }

  /** Returns the id of a value, or -1 if the value is not frequent. */
  int find(long[] slots, int table, int value) {
    if (bits[table] == 0) {
      return value;
    }
    return (int) slots[slot(slots, table, value)] - 1;
  }

  private int slot(long[] slots, int table, int value) {
    int start = starts[table];
    int mask = (1 << bits[table]) - 1;
    int slot = value * MULTIPLIER >>> 32 - bits[table];
    long word = slots[start + slot];
    while (word != 0 && (int) (word >>> 32) != value) {
      slot = slot + 1 & mask;
      word = slots[start + slot];
    }
    return start + slot;
  }
}
