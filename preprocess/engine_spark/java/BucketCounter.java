package dlrm.ingest;

import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.sql.RowFactory;

/** Counts the rows of one partition's chunks by bucket: (bucket, rows). It needs no row's bytes. */
public final class BucketCounter implements MapPartitionsFunction {
  private static final long serialVersionUID = 1L;

  private final RowNumbers numbers;
  private final BucketAssignment assignment;

  /** The parameters are those of `RowNumbers` and `BucketAssignment`. */
  public BucketCounter(
      String offsets, String parts, String sizes, String shuffle, String done) {
    this.numbers = new RowNumbers(offsets);
    this.assignment = new BucketAssignment(parts, sizes, shuffle, done);
  }

  /** Returns the counts of one partition. */
  public Iterator call(Iterator chunks) {
    long[] counts = new long[assignment.buckets()];
    AssignedRows rows = new AssignedRows(chunks, 0, numbers, assignment);
    while (rows.next()) {
      counts[rows.bucket]++;
    }
    List found = new ArrayList();
    for (int bucket = 0; bucket < counts.length; bucket++) {
      if (counts[bucket] > 0) {
        Object[] fields = {Integer.valueOf(bucket), Long.valueOf(counts[bucket])};
        found.add(RowFactory.create(fields));
      }
    }
    return found.iterator();
  }
}
