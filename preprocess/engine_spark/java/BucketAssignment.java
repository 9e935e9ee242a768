package dlrm.ingest;

import java.io.Serializable;

/**
 * Assigns each row to a bucket, and gives it the key by which the rows of a bucket are sorted.
 *
 * <p>A bucket is a contiguous range of a split in its final order. Buckets are numbered over all
 * splits. Shuffled training rows are assigned by the leading bits of their shuffle key, all other
 * rows by their number.
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
   * @param parts for each row range its tag, its first row and the row after its last; empty if
   *     the rows have tags
   * @param sizes the rows of a bucket and the buckets of a split
   * @param shuffle the number of bits that select a bucket, the factor and summand for a row's
   *     number, then the shift and factor of each round; empty to leave the rows in order
   * @param done the buckets whose rows are not needed
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

  /** Returns the number of buckets of all splits. */
  int buckets() {
    return 3 * splitBuckets;
  }

  boolean isDone(int bucket) {
    return done[bucket];
  }

  /** Returns the tag of a row by its number, if the rows have no tags. */
  int tag(long number) {
    int part = 0;
    while (number < parts[part + 1] || number >= parts[part + 2]) {
      part += 3;
    }
    return (int) parts[part];
  }

  boolean rowsHaveTags() {
    return parts.length == 0;
  }

  /** Returns the key of a row, which is unique. */
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
