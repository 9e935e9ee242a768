package dlrm.ingest;

import java.io.Serializable;

/**
 * Where a row goes: to a bucket, which is a stretch of a split's final order, and there to the
 * place of its key among the keys of the bucket.
 *
 * <p>Buckets are numbered over all splits. Rows that train are dealt to theirs by the leading bits
 * of their shuffle key if they are shuffled; all others by their number.
 */
final class BucketAssignment implements Serializable {
  private static final long serialVersionUID = 1L;
  private static final int TRAIN = 0;

  private final long[] parts;
  private final long bucketRows;
  private final int splitBuckets;
  private final long[] mix;
  private final int bits;
  private final boolean[] done;

  /**
   * @param parts a split's tag, first row and row after the last, again and again; empty if rows
   *     tell their tag
   * @param sizes rows of a bucket, buckets of a split
   * @param shuffle bits that tell a bucket, factor and summand of a row's number, then shift and
   *     factor of each round; empty to leave rows in order
   * @param done buckets that are not needed
   */
  BucketAssignment(String parts, String sizes, String shuffle, String done) {
    this.parts = Numbers.parse(parts);
    this.bucketRows = Numbers.parse(sizes)[0];
    this.splitBuckets = (int) Numbers.parse(sizes)[1];
    long[] numbers = Numbers.parse(shuffle);
    this.bits = numbers.length > 0 ? (int) numbers[0] : 0;
    this.mix = numbers;
    this.done = new boolean[buckets()];
    numbers = Numbers.parse(done);
    for (int i = 0; i < numbers.length; i++) {
      this.done[(int) numbers[i]] = true;
    }
  }

  /** Buckets of all splits. */
  int buckets() {
    return 3 * splitBuckets;
  }

  boolean isDone(int bucket) {
    return done[bucket];
  }

  /** The tag of a row that does not tell it. */
  int tag(long number) {
    int part = 0;
    while (number < parts[part + 1] || number >= parts[part + 2]) {
      part += 3;
    }
    return (int) parts[part];
  }

  boolean rowsTellTags() {
    return parts.length == 0;
  }

  long key(int tag, long number) {
    if (mix.length == 0 || tag != TRAIN) {
      return number;
    }
    long word = number * mix[1] + mix[2];
    for (int i = 3; i < mix.length; i += 2) {
      word = (word ^ word >>> (int) mix[i]) * mix[i + 1];
    }
    return word;
  }

  int bucket(int tag, long number, long key) {
    long index = mix.length == 0 || tag != TRAIN ? number / bucketRows : key >>> 64 - bits;
    return tag * splitBuckets + (int) index;
  }
}
