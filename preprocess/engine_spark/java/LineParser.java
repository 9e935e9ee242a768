package dlrm.ingest;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import org.apache.spark.TaskContext;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.broadcast.Broadcast;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;

/**
 * Parses the lines of a file into chunks of staged rows, which `Layout` describes.
 *
 * <p>The last row of each partition is a summary: the counts, and the first bad lines.
 */
public final class LineParser implements MapPartitionsFunction {
  private static final long serialVersionUID = 1L;
  // Spark's Parquet reader holds 4096 chunks in memory at a time.
  private static final int CHUNK_BYTES = 8192;

  private final int file;
  private final Layout layout;
  private final boolean header;
  private final int named;
  private final Broadcast texts;
  private final Fields fields;

  /**
   * @param file index of the file
   * @param dense number of dense columns
   * @param tables the parameter of `Layout`
   * @param header whether the file's first line names the columns
   * @param named maximal number of bad lines that a partition reports
   * @param texts the result of `KnownTexts.numbers`, a broadcast variable; null without such texts
   * @param delimiter this and the following parameters are those of `Fields`
   */
  public LineParser(
      int file,
      int dense,
      String tables,
      boolean header,
      int named,
      Broadcast texts,
      String delimiter,
      boolean quotes,
      boolean missingIsValue,
      String fields,
      String tags) {
    this.file = file;
    this.layout = new Layout(dense, tables);
    this.header = header;
    this.named = named;
    this.texts = texts;
    this.fields = new Fields(delimiter, quotes, missingIsValue, fields, tags);
  }

  /** Returns the chunks of one partition, whose rows are lines as bytes, in order. */
  public Iterator call(Iterator lines) {
    return new Chunks(lines);
  }

  private final class Chunks extends Batches {
    final Iterator lines;
    final int partition = TaskContext.getPartitionId();
    final int chunkRows = Math.max(1, CHUNK_BYTES / layout.rowBytes);
    final LineReader reader = new LineReader(fields, layout, texts == null ? null : (Map) texts.value());
    final long[] missing = new long[layout.bags.length];
    final long[] shortened = new long[layout.bags.length];
    final List bad = new ArrayList();
    long read = 0;
    long emptyEnd = 0;
    long rows = 0;
    long positives = 0;
    long raised = 0;
    boolean ended = false;

    Chunks(Iterator lines) {
      this.lines = lines;
    }

    Iterator more() {
      byte[] data = new byte[chunkRows * layout.rowBytes];
      byte[] chunkTags = fields.anySplit ? new byte[chunkRows] : null;
      ByteBuffer chunk = Layout.words(data);
      int filled = 0;
      while (filled < chunkRows && lines.hasNext()) {
        byte[] line = (byte[]) ((Row) lines.next()).get(0);
        read++;
        if (header && partition == 0 && read == 1) {
          continue;
        }
        int length = line.length;
        if (length > 0 && line[length - 1] == '\r') {
          length--;
        }
        // A bad line has a mark before it if the lines are those of `column_lines.py`.
        emptyEnd = length == 0 || length == 1 && line[0] == '!' ? emptyEnd + 1 : 0;
        int row = filled * layout.rowBytes;
        if (!reader.read(line, length, chunk, row)) {
          if (bad.size() < named) {
            bad.add(new Object[] {Long.valueOf(read), Arrays.copyOf(line, length)});
          }
          continue;
        }
        count(chunk.getInt(row));
        if (fields.anySplit) {
          chunkTags[filled] = (byte) reader.tag;
        }
        filled++;
      }
      if (filled > 0) {
        rows += filled;
        if (filled < chunkRows) {
          data = Arrays.copyOf(data, filled * layout.rowBytes);
          chunkTags = fields.anySplit ? Arrays.copyOf(chunkTags, filled) : null;
        }
        return one(rows - filled, filled, chunkTags, data, null);
      }
      if (ended) {
        return null;
      }
      ended = true;
      return one(rows, 0, null, null, summary());
    }

    private Iterator one(long before, int size, byte[] chunkTags, byte[] data, String summary) {
      Object[] fields = {
        Integer.valueOf(file), Integer.valueOf(partition), Long.valueOf(before),
        Integer.valueOf(size), chunkTags, data, summary
      };
      return Collections.singleton(RowFactory.create(fields)).iterator();
    }

    private void count(int label) {
      positives += label;
      raised += reader.raised;
      for (int i = 0; i < reader.absentSlots; i++) {
        int table = layout.tables[reader.absent[i]];
        if (reader.absent[i] == layout.firstSlots[table]) {
          missing[table]++;
        }
      }
      for (int table = 0; table < shortened.length; table++) {
        shortened[table] += reader.shortened[table] ? 1 : 0;
      }
    }

    private String summary() {
      StringBuilder text = new StringBuilder();
      text.append("{\"lines\":").append(read).append(",\"rows\":").append(rows);
      text.append(",\"positives\":").append(positives).append(",\"raised\":").append(raised);
      text.append(",\"missing\":").append(Arrays.toString(missing));
      text.append(",\"empty_end\":").append(emptyEnd);
      text.append(",\"shortened\":").append(Arrays.toString(shortened)).append(",\"bad\":[");
      for (int i = 0; i < bad.size(); i++) {
        Object[] entry = (Object[]) bad.get(i);
        text.append(i > 0 ? "," : "").append('[').append(entry[0]).append(",\"");
        byte[] line = (byte[]) entry[1];
        for (int k = 0; k < line.length; k++) {
          text.append(Character.forDigit(line[k] >> 4 & 15, 16));
          text.append(Character.forDigit(line[k] & 15, 16));
        }
        text.append("\"]");
      }
      return text.append("]}").toString();
    }
  }
}
