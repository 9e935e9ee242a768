package dlrm.ingest;

import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.broadcast.Broadcast;
import org.apache.spark.sql.RowFactory;

/** Finds the values in chunks that `HotIds` lacks, as rows (bucket, key, slot, table, value). */
public final class ColdValues implements MapPartitionsFunction {
  private static final long serialVersionUID = 1L;

  private final Layout layout;
  private final RowNumbers numbers;
  private final BucketAssignment assignment;
  private final HotIds hot;
  private final Broadcast slots;

  /** The parameters are those of `RecordMaker`. */
  public ColdValues(
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
  }

  /** Returns the values of one partition. */
  public Iterator call(Iterator chunks) {
    return new Values(new AssignedRows(chunks, layout.rowBytes, numbers, assignment));
  }

  private final class Values extends Batches {
    final AssignedRows rows;
    final long[] ids = (long[]) slots.value();

    Values(AssignedRows rows) {
      this.rows = rows;
    }

    Iterator more() {
      if (!rows.next()) {
        return null;
      }
      List found = new ArrayList();
      for (int slot = 0; slot < layout.slots; slot++) {
        int table = layout.tables[slot];
        int value = rows.rows.getInt(rows.row + layout.value(slot));
        if (!layout.isMissing(rows.rows, rows.row, slot) && hot.find(ids, table, value) < 0) {
          Object[] fields = {
            Integer.valueOf(rows.bucket), Long.valueOf(rows.key), Integer.valueOf(slot),
            Integer.valueOf(table), Long.valueOf(value & 0xFFFFFFFFL)
          };
          found.add(RowFactory.create(fields));
        }
      }
      return found.iterator();
    }
  }
}
