package dlrm.ingest;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.broadcast.Broadcast;
import org.apache.spark.sql.RowFactory;

/**
 * Makes records with final ids from chunks, in slices (bucket, bytes).
 *
 * <p>A slice holds rows of one bucket: first their keys as int64, then their records. A value that
 * `HotIds` lacks gets id 0 here; `ColdValues` finds these values. A slot that a bag does not fill
 * gets NO_ID.
 */
public final class RecordMaker implements MapPartitionsFunction {
  private static final long serialVersionUID = 1L;
  private static final int BUFFER_BYTES = 1 << 23;

  private final Layout layout;
  private final RowNumbers numbers;
  private final BucketAssignment assignment;
  private final HotIds hot;
  private final Broadcast slots;
  private final int recordBytes;

  /** Takes the columns, the parameters of `RowNumbers` and `BucketAssignment`, and the ids. */
  public RecordMaker(
      int dense,
      String tables,
      String offsets,
      String parts,
      String sizes,
      String shuffle,
      String done,
      HotIds hot,
      Broadcast slots) {
    this.layout = new Layout(dense, tables);
    this.numbers = new RowNumbers(offsets);
    this.assignment = new BucketAssignment(parts, sizes, shuffle, done);
    this.hot = hot;
    this.slots = slots;
    this.recordBytes = 4 * (1 + dense + layout.slots);
  }

  /** Returns the slices of one partition. */
  public Iterator call(Iterator chunks) {
    return new Slices(new AssignedRows(chunks, layout.rowBytes, numbers, assignment));
  }

  private final class Slices extends Batches {
    final AssignedRows rows;
    final int capacity = Math.max(1, BUFFER_BYTES / recordBytes);
    final long[] ids = (long[]) slots.value();
    final int[] buckets = new int[capacity];
    final long[] keys = new long[capacity];
    final ByteBuffer records = Layout.words(new byte[capacity * recordBytes]);
    final int[] counts = new int[assignment.buckets()];

    Slices(AssignedRows rows) {
      this.rows = rows;
    }

    Iterator more() {
      int size = 0;
      while (size < capacity && rows.next()) {
        buckets[size] = rows.bucket;
        keys[size] = rows.key;
        counts[rows.bucket]++;
        record(size * recordBytes);
        size++;
      }
      return size > 0 ? slices(size).iterator() : null;
    }

    private void record(int at) {
      int copied = 4 * (1 + layout.dense);
      System.arraycopy(rows.rows.array(), rows.row, records.array(), at, copied);
      for (int slot = 0; slot < layout.slots; slot++) {
        int table = layout.tables[slot];
        int id = layout.bags[table] ? RecordWriter.NO_ID : 0;
        if (!layout.isMissing(rows.rows, rows.row, slot)) {
          int value = rows.rows.getInt(rows.row + layout.value(slot));
          id = Math.max(0, hot.find(ids, table, value));
        }
        records.putInt(at + copied + 4 * slot, id);
      }
    }

    /** Returns the buffered records as one slice for each bucket, and resets the counts. */
    private List slices(int size) {
      ByteBuffer[] slices = new ByteBuffer[counts.length];
      int[] filled = new int[counts.length];
      List found = new ArrayList();
      for (int i = 0; i < size; i++) {
        int bucket = buckets[i];
        if (filled[bucket] == 0) {
          slices[bucket] = Layout.words(new byte[counts[bucket] * (8 + recordBytes)]);
          Object[] fields = {Integer.valueOf(bucket), slices[bucket].array()};
          found.add(RowFactory.create(fields));
        }
        ByteBuffer slice = slices[bucket];
        slice.putLong(8 * filled[bucket], keys[i]);
        int at = 8 * counts[bucket] + filled[bucket] * recordBytes;
        System.arraycopy(records.array(), i * recordBytes, slice.array(), at, recordBytes);
        filled[bucket]++;
      }
      Arrays.fill(counts, 0);
      return found;
    }
  }
}
