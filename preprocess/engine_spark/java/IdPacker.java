package dlrm.ingest;

import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.Collections;
import java.util.Iterator;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;

/** Packs rows (table, value, id) into byte arrays, as three int32 each, many rows in one array. */
public final class IdPacker implements MapPartitionsFunction {
  private static final long serialVersionUID = 1L;
  private static final int ENTRIES = 1 << 16;

  /** Returns the byte arrays of one partition. */
  public Iterator call(Iterator rows) {
    return new Packs(rows);
  }

  private static final class Packs extends Batches {
    final Iterator rows;

    Packs(Iterator rows) {
      this.rows = rows;
    }

    Iterator more() {
      if (!rows.hasNext()) {
        return null;
      }
      byte[] bytes = new byte[12 * ENTRIES];
      ByteBuffer words = Layout.words(bytes);
      while (rows.hasNext() && words.hasRemaining()) {
        Row row = (Row) rows.next();
        words.putInt(row.getInt(0)).putInt((int) row.getLong(1)).putInt(row.getInt(2));
      }
      Object[] fields = {Arrays.copyOf(bytes, words.position())};
      return Collections.singleton(RowFactory.create(fields)).iterator();
    }
  }
}
