package dlrm.ingest;

import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.sql.RowFactory;

/**
 * Counts the rows of one partition's chunks by bucket, and the ids of each table with bags: (bucket,
 * rows, ids ...). Without such tables it needs no row's bytes.
 */
public final class BucketCounter implements MapPartitionsFunction {
  private static final long serialVersionUID = 1L;

  private final Layout layout;
  private final int firstBag;
  private final RowNumbers numbers;
  private final BucketAssignment assignment;

  /** The parameters are those of `Layout`, `RowNumbers` and `BucketAssignment`. */
  public BucketCounter(
      int dense,
      String tables,
      String offsets,
      String parts,
      String sizes,
      String shuffle,
      String done) {
    this.layout = new Layout(dense, tables);
    int first = 0;
    while (first < layout.bags.length && !layout.bags[first]) {
      first++;
    }
    this.firstBag = first;
    this.numbers = new RowNumbers(offsets);
    this.assignment = new BucketAssignment(parts, sizes, shuffle, done);
  }

  /** Returns the counts of one partition. */
  public Iterator call(Iterator chunks) {
    long[] counts = new long[assignment.buckets()];
    int bags = layout.bags.length - firstBag;
    long[] ids = new long[counts.length * bags];
    AssignedRows rows = new AssignedRows(chunks, layout.rowBytes, numbers, assignment);
    while (rows.next()) {
      counts[rows.bucket]++;
      for (int bag = 0; bag < bags; bag++) {
        ids[rows.bucket * bags + bag] += layout.ids(rows.rows, rows.row, firstBag + bag);
      }
    }
    List found = new ArrayList();
    for (int bucket = 0; bucket < counts.length; bucket++) {
      if (counts[bucket] > 0) {
        Object[] fields = new Object[2 + bags];
        fields[0] = Integer.valueOf(bucket);
        fields[1] = Long.valueOf(counts[bucket]);
        for (int bag = 0; bag < bags; bag++) {
          fields[2 + bag] = Long.valueOf(ids[bucket * bags + bag]);
        }
        found.add(RowFactory.create(fields));
      }
    }
    return found.iterator();
  }
}
