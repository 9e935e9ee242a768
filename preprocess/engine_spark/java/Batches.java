package dlrm.ingest;

import java.util.Collections;
import java.util.Iterator;

/**
 * The output of a task, made one batch at a time, so that no task holds all of its output.
 *
 * <p>The classes of this package use neither generics nor lambdas, because the compiler that comes
 * with Spark does not support them.
 */
abstract class Batches implements Iterator {
  private Iterator batch = Collections.emptyIterator();

  /** Returns the next batch, which may be empty, or null after the last. */
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
