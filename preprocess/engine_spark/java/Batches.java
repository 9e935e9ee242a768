package dlrm.ingest;

import java.util.Collections;
import java.util.Iterator;

/**
 * What a task hands to Spark, made a batch at a time, so that no task holds all its output.
 *
 * <p>Here and beside: without generics and lambdas, so that the compiler that ships with Spark can
 * compile it.
 */
abstract class Batches implements Iterator {
  private Iterator batch = Collections.emptyIterator();

  /** The next batch, which may be empty; null when there are no more. */
  abstract Iterator more();

  public boolean hasNext() {
    while (batch != null && !batch.hasNext()) {
      batch = more();
    }
    return batch != null;
  }

  public Object next() {
    return batch.next();
  }

  public void remove() {
    throw new UnsupportedOperationException();
  }
}
