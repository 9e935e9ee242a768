package dlrm.ingest;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Paths;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.zip.CRC32;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.sql.Row;

/**
 * Writes records as little-endian int32: what Spark has no sink for.
 *
 * <p>Rows come as (split, bucket, word, word, ...), sorted so that a bucket's rows stand together
 * and in their final order. Each bucket goes to its place in the output files of its split: at a
 * known offset on a file system that all workers mount, or as a file of its own elsewhere. When it
 * is on disk, a marker with its sizes and checksums is written; a bucket with a marker is never
 * written again. A task that is tried twice writes the same bytes to the same places.
 *
 * <p>Without generics and lambdas, so that the compiler that ships with Spark can compile it.
 */
public final class RecordWriter implements MapPartitionsFunction {
  private static final long serialVersionUID = 1L;
  private static final int BUFFER_BYTES = 1 << 20;

  private final String folder;
  private final boolean offsets;
  private final String settings;
  private final String[] names;
  private final int[][] layouts;
  private final HashMap starts;

  /**
   * @param folder where outputs, parts and markers go
   * @param offsets whether outputs are written at offsets, by the local file system
   * @param files a line for each output file: split, first column, column after the last, words of
   *     a packed row or 0, name, then for a packed one the word and shift of each column
   * @param buckets a line for each bucket: split, bucket, rows of the split before it
   * @param settings Hadoop's settings, as XML
   */
  public RecordWriter(
      String folder, boolean offsets, String files, String buckets, String settings) {
    this.folder = folder;
    this.offsets = offsets;
    this.settings = settings;
    String[] lines = files.split("\n");
    this.names = new String[lines.length];
    this.layouts = new int[lines.length][];
    for (int i = 0; i < lines.length; i++) {
      String[] fields = lines[i].split(" ");
      this.names[i] = fields[4];
      this.layouts[i] = new int[fields.length - 1];
      for (int k = 0; k < fields.length; k++) {
        if (k != 4) {
          this.layouts[i][k < 4 ? k : k - 1] = Integer.parseInt(fields[k]);
        }
      }
    }
    this.starts = new HashMap();
    lines = buckets.split("\n");
    for (int i = 0; i < lines.length; i++) {
      int space = lines[i].lastIndexOf(' ');
      this.starts.put(lines[i].substring(0, space), Long.valueOf(lines[i].substring(space + 1)));
    }
  }

  /** Writes the buckets of one partition; returns what their markers hold. */
  public Iterator call(Iterator rows) throws Exception {
    List markers = new ArrayList();
    Bucket bucket = null;
    while (rows.hasNext()) {
      Row row = (Row) rows.next();
      int split = row.getInt(0);
      int number = row.getInt(1);
      if (bucket == null || bucket.split != split || bucket.number != number) {
        if (bucket != null) {
          markers.add(bucket.finish());
        }
        bucket = new Bucket(split, number);
      }
      bucket.add(row);
    }
    if (bucket != null) {
      markers.add(bucket.finish());
    }
    return markers.iterator();
  }

  private FileSystem fileSystem(Path path) throws IOException {
    Configuration configuration = new Configuration(false);
    configuration.addResource(new ByteArrayInputStream(settings.getBytes("UTF-8")), "driver");
    return path.getFileSystem(configuration);
  }

  private final class Bucket {
    final int split;
    final int number;
    final List sinks = new ArrayList();

    Bucket(int split, int number) throws IOException {
      this.split = split;
      this.number = number;
      long before = ((Long) starts.get(split + " " + number)).longValue();
      for (int i = 0; i < names.length; i++) {
        if (layouts[i][0] == split) {
          sinks.add(new Sink(names[i], layouts[i], number, before));
        }
      }
    }

    void add(Row row) throws IOException {
      for (int i = 0; i < sinks.size(); i++) {
        ((Sink) sinks.get(i)).add(row);
      }
    }

    String finish() throws IOException {
      StringBuilder marker = new StringBuilder(split + " " + number);
      for (int i = 0; i < sinks.size(); i++) {
        marker.append(((Sink) sinks.get(i)).finish());
      }
      marker.append(" end");
      Path path = new Path(folder, "done/" + split + "-" + number);
      Path temporary = new Path(folder, "done/." + split + "-" + number + "." + System.nanoTime());
      FileSystem files = fileSystem(path);
      FSDataOutputStream stream = files.create(temporary, true);
      stream.write(marker.toString().getBytes("UTF-8"));
      stream.close();
      files.delete(path, false);
      files.rename(temporary, path);
      return marker.toString();
    }
  }

  private final class Sink {
    final String name;
    final int[] layout;
    final int width;
    final int[] words;
    final ByteBuffer buffer = ByteBuffer.allocate(BUFFER_BYTES).order(ByteOrder.LITTLE_ENDIAN);
    final CRC32 crc = new CRC32();
    long size = 0;
    long position;
    FileChannel channel;
    FSDataOutputStream stream;
    Path path;
    Path temporary;

    Sink(String name, int[] layout, int bucket, long before) throws IOException {
      this.name = name;
      this.layout = layout;
      this.width = layout[3] > 0 ? layout[3] : layout[2] - layout[1];
      this.words = new int[layout[3]];
      this.position = 4L * width * before;
      if (offsets) {
        channel =
            FileChannel.open(
                Paths.get(folder, new String[] {name}),
                new StandardOpenOption[] {StandardOpenOption.CREATE, StandardOpenOption.WRITE});
      } else {
        String part = String.format("parts/%s.%09d", new Object[] {name, Integer.valueOf(bucket)});
        path = new Path(folder, part);
        temporary = new Path(folder, part + ".tmp" + System.nanoTime());
        stream = fileSystem(path).create(temporary, true);
      }
    }

    void add(Row row) throws IOException {
      if (buffer.remaining() < 4 * width) {
        flush();
      }
      int first = layout[1];
      int stop = layout[2];
      if (layout[3] == 0) {
        for (int column = first; column < stop; column++) {
          buffer.putInt(row.getInt(2 + column));
        }
        return;
      }
      for (int word = 0; word < width; word++) {
        words[word] = 0;
      }
      for (int column = first; column < stop; column++) {
        int place = 4 + 2 * (column - first);
        words[layout[place]] |= row.getInt(2 + column) << layout[place + 1];
      }
      for (int word = 0; word < width; word++) {
        buffer.putInt(words[word]);
      }
    }

    void flush() throws IOException {
      buffer.flip();
      int count = buffer.limit();
      crc.update(buffer.array(), 0, count);
      if (offsets) {
        while (buffer.hasRemaining()) {
          position += channel.write(buffer, position);
        }
      } else {
        stream.write(buffer.array(), 0, count);
      }
      size += count;
      buffer.clear();
    }

    String finish() throws IOException {
      flush();
      if (offsets) {
        channel.force(false);
        channel.close();
      } else {
        stream.hsync();
        stream.close();
        FileSystem files = fileSystem(path);
        files.delete(path, false);
        files.rename(temporary, path);
      }
      return " " + name + " " + size + " " + crc.getValue();
    }
  }
}
