package dlrm.ingest;

import java.util.HashMap;
import java.util.List;
import org.apache.spark.sql.Row;

/** Collects the numbers of the texts that bags hold, for a broadcast variable. */
public final class KnownTexts {
  /** Returns the number of each text, a Long, by its key; rows are (table, text, number). */
  public HashMap numbers(List rows) {
    HashMap numbers = new HashMap();
    for (int i = 0; i < rows.size(); i++) {
      Row row = (Row) rows.get(i);
      numbers.put(key(row.getInt(0), row.getString(1)), Long.valueOf(row.getLong(2)));
    }
    return numbers;
  }

  /** Returns the key of a text, given as hexadecimal digits. */
  static String key(int table, String text) {
    return table + " " + text;
  }
}
