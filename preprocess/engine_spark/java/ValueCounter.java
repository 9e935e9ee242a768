package dlrm.ingest;

import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.Iterator;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;

/**
 * Counts the values of chunks within a task: (table, value, ids of the value, first place).
 *
 * <p>A task counts in one hash table and passes the counts on when it is full, so that its memory
 * does not grow with the number of values; Spark sums the counts of all tasks.
 */
public final class ValueCounter implements MapPartitionsFunction {
  private static final long serialVersionUID = 1L;
  private static final int FIRST_BITS = 6;
  private static final int ENTRY = 3; // table and value, plus 1; ids; first place
  private static final long MULTIPLIER = 0x9E3779B97F4A7C15L;

  private final Layout layout;
  private final RowNumbers numbers;
  private final int most;
  private final boolean[] counted;

  /**
   * @param dense number of dense columns
   * @param tables the parameter of `Layout`
   * @param offsets the parameter of `RowNumbers`
   * @param most approximate number of values at which the hash table is full
   * @param dictionaries the tables whose values are counted, as they have dictionaries
   */
  public ValueCounter(int dense, String tables, String offsets, int most, String dictionaries) {
    this.layout = new Layout(dense, tables);
    this.numbers = new RowNumbers(offsets);
    this.most = most;
    this.counted = new boolean[layout.bags.length];
    long[] numbers = Numbers.parse(dictionaries);
    for (int i = 0; i < numbers.length; i++) {
      counted[(int) numbers[i]] = true;
    }
  }

  /** Returns the counts of one partition. */
  public Iterator call(Iterator chunks) {
    return new Counts(chunks);
  }

  private final class Counts extends Batches {
    final Iterator chunks;
    int bits = FIRST_BITS;
    long[] entries = new long[ENTRY << bits];
    int size = 0;

    Counts(Iterator chunks) {
      this.chunks = chunks;
    }

    Iterator more() {
      Arrays.fill(entries, 0L);
      size = 0;
      while (size < most && chunks.hasNext()) {
        add((Row) chunks.next());
      }
      return size > 0 ? new Entries(entries) : null;
    }

    private void add(Row chunk) {
      ByteBuffer rows = Layout.words((byte[]) chunk.get(5));
      long number = numbers.first(chunk);
      for (int row = 0; row < rows.capacity(); row += layout.rowBytes, number++) {
        for (int slot = 0; slot < layout.slots; slot++) {
          if (counted[layout.tables[slot]] && !layout.isMissing(rows, row, slot)) {
            long value = rows.getInt(row + layout.value(slot)) & 0xFFFFFFFFL;
            add(((long) layout.tables[slot] << 32 | value) + 1, 1, number * layout.slots + slot);
          }
        }
      }
    }

    private void add(long key, long count, long first) {
      int mask = (1 << bits) - 1;
      int slot = (int) (key * MULTIPLIER >>> 64 - bits);
      while (entries[ENTRY * slot] != key && entries[ENTRY * slot] != 0) {
        slot = slot + 1 & mask;
      }
      int at = ENTRY * slot;
      if (entries[at] == 0) {
        entries[at] = key;
        entries[at + 2] = first;
        size++;
      }
      entries[at + 1] += count;
      entries[at + 2] = Math.min(entries[at + 2], first);
      if (2 * size > 1 << bits) {
        grow();
      }
    }

    private void grow() {
      long[] old = entries;
      bits++;
      entries = new long[ENTRY << bits];
      size = 0;
      for (int at = 0; at < old.length; at += ENTRY) {
        if (old[at] != 0) {
          add(old[at], old[at + 1], old[at + 2]);
        }
      }
    }
  }

  private static final class Entries implements Iterator {
    final long[] entries;
    int at = -ENTRY;

    Entries(long[] entries) {
      this.entries = entries;
      advance();
    }

    private void advance() {
      do {
        at += ENTRY;
      } while (at < entries.length && entries[at] == 0);
    }

    public boolean hasNext() {
      return at < entries.length;
    }

    public Object next() {
      long key = entries[at] - 1;
      Object[] fields = {
        Integer.valueOf((int) (key >>> 32)), Long.valueOf(key & 0xFFFFFFFFL),
        Long.valueOf(entries[at + 1]), Long.valueOf(entries[at + 2])
      };
      advance();
      return RowFactory.create(fields);
    }

    public void remove() {
      throw new UnsupportedOperationException();
    }
  }
}
