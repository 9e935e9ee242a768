package dlrm.ingest;

import java.nio.ByteBuffer;
import java.util.Iterator;
import org.apache.spark.sql.Row;

/** Iterates over the rows of chunks with their buckets and keys, except for finished buckets. */
final class AssignedRows {
  /** The rows of the present chunk; null if the chunks are without data. */
  ByteBuffer rows;

  /** The offset in `rows` at which the present row begins. */
  int row;

  int bucket;
  long key;

  private final Iterator chunks;
  private final int rowBytes;
  private final RowNumbers numbers;
  private final BucketAssignment assignment;
  private byte[] tags;
  private long first;
  private int size = 0;
  private int next = 0;

  AssignedRows(Iterator chunks, int rowBytes, RowNumbers numbers, BucketAssignment assignment) {
    this.chunks = chunks;
    this.rowBytes = rowBytes;
    this.numbers = numbers;
    this.assignment = assignment;
  }

  /** Advances to the next row; returns false after the last. */
  boolean next() {
    while (next < size || chunk()) {
      long number = first + next;
      int tag = assignment.rowsHaveTags() ? (int) tags[next] : assignment.tag(number);
      row = next * rowBytes;
      next++;
      key = assignment.key(tag, number);
      bucket = assignment.bucket(tag, number, key);
      if (!assignment.isDone(bucket)) {
        return true;
      }
    }
    return false;
  }

  private boolean chunk() {
    if (!chunks.hasNext()) {
      return false;
    }
    Row chunk = (Row) chunks.next();
    first = numbers.first(chunk);
    size = chunk.getInt(3);
    tags = (byte[]) chunk.get(4);
    rows = chunk.isNullAt(5) ? null : Layout.words((byte[]) chunk.get(5));
    next = 0;
    return true;
  }
}
