package dlrm.ingest;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Paths;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
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
import org.apache.spark.sql.RowFactory;

/**
 * Writes records as little-endian int32, for which Spark has no sink.
 *
 * <p>Rows are (bucket, slice, key, slot, id), sorted by bucket: first the slices of a bucket, as
 * `RecordMaker` makes them, then ids of single values, which replace the id in the record of their
 * key. A bucket is small and is sorted in memory. It is written to the output files of its split:
 * at a known offset on a file system that all workers mount, or to a separate file elsewhere. When
 * it is on disk, a marker with its sizes and checksums is written; a bucket with a marker is never
 * written again. A task that is repeated writes the same bytes at the same positions.
 */
public final class RecordWriter implements MapPartitionsFunction {
  private static final long serialVersionUID = 1L;
  private static final int BUFFER_BYTES = 1 << 20;
  private static final int IDS = -1;
  private static final int OFFSETS = -2;
  private static final int WEIGHTS = -3;

  /** What stands in the slots that a bag does not fill. */
  static final int NO_ID = -1;

  private final String folder;
  private final boolean offsets;
  private final String settings;
  private final String[] names;
  private final int[][] layouts;
  private final int width;
  private final int firstSlot;
  private final HashMap buckets;

  /**
   * @param folder folder of the outputs, parts and markers
   * @param offsets whether outputs are written at offsets, through the local file system
   * @param files a line for each output file: its split, its first column, the column after its
   *     last, the words of a packed row or 0, its name, and if packed the word and shift of each
   *     column; of a bag, instead of the words one of IDS, OFFSETS and WEIGHTS, and behind the name
   *     the column of its first id and its number among the bags
   * @param width number of words of a record
   * @param slots number of its last words, which are ids
   * @param buckets a line for each bucket: its number, its split, the rows of the split before it,
   *     its rows, and for each table with bags the ids of the split before it
   * @param settings Hadoop's settings, as XML
   */
  public RecordWriter(
      String folder,
      boolean offsets,
      String files,
      int width,
      int slots,
      String buckets,
      String settings) {
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
    this.width = width;
    this.firstSlot = width - slots;
    this.buckets = new HashMap();
    lines = buckets.split("\n");
    for (int i = 0; i < lines.length; i++) {
      long[] numbers = Numbers.parse(lines[i]);
      this.buckets.put(Integer.valueOf((int) numbers[0]), numbers);
    }
  }

  /** Writes the buckets of one partition; returns their numbers. */
  public Iterator call(Iterator rows) throws Exception {
    List written = new ArrayList();
    Bucket bucket = null;
    while (rows.hasNext()) {
      Row row = (Row) rows.next();
      int number = row.getInt(0);
      if (bucket == null || bucket.number != number) {
        if (bucket != null) {
          bucket.finish();
          written.add(RowFactory.create(new Object[] {Integer.valueOf(bucket.number)}));
        }
        bucket = new Bucket((long[]) buckets.get(Integer.valueOf(number)));
      }
      if (row.isNullAt(1)) {
        bucket.correct(row.getLong(2), row.getInt(3), row.getInt(4));
      } else {
        bucket.add((byte[]) row.get(1));
      }
    }
    if (bucket != null) {
      bucket.finish();
      written.add(RowFactory.create(new Object[] {Integer.valueOf(bucket.number)}));
    }
    return written.iterator();
  }

  private FileSystem fileSystem(Path path) throws IOException {
    Configuration configuration = new Configuration(false);
    configuration.addResource(new ByteArrayInputStream(settings.getBytes("UTF-8")), "driver");
    return path.getFileSystem(configuration);
  }

  private final class Bucket {
    final int number;
    final int split;
    final long before;
    final long[] numbers;
    final long[] keys;
    final ByteBuffer records;
    int size = 0;
    long[] sorted;
    int[] order;

    Bucket(long[] numbers) {
      this.number = (int) numbers[0];
      this.split = (int) numbers[1];
      this.before = numbers[2];
      this.numbers = numbers;
      this.keys = new long[(int) numbers[3]];
      this.records = Layout.words(new byte[4 * width * keys.length]);
    }

    void add(byte[] slice) {
      ByteBuffer words = Layout.words(slice);
      int rows = slice.length / (8 + 4 * width);
      for (int i = 0; i < rows; i++) {
        keys[size + i] = words.getLong();
      }
      System.arraycopy(slice, 8 * rows, records.array(), 4 * width * size, 4 * width * rows);
      size += rows;
    }

    /** Sorts the records of the complete bucket by their keys, which are unique. */
    private void sort() {
      if (size != keys.length) {
        throw new IllegalStateException(
            "bucket " + number + ": expected " + keys.length + " rows, found " + size);
      }
      sorted = (long[]) keys.clone();
      Arrays.sort(sorted);
      order = new int[size];
      for (int record = 0; record < size; record++) {
        order[Arrays.binarySearch(sorted, keys[record])] = record;
      }
    }

    void correct(long key, int slot, int id) {
      if (order == null) {
        sort();
      }
      int record = order[Arrays.binarySearch(sorted, key)];
      records.putInt(4 * (width * record + firstSlot + slot), id);
    }

    void finish() throws IOException {
      if (order == null) {
        sort();
      }
      StringBuilder marker = new StringBuilder().append(number);
      for (int i = 0; i < names.length; i++) {
        if (layouts[i][0] == split) {
          long ids = layouts[i][3] < 0 ? numbers[4 + layouts[i][5]] : 0;
          Sink sink = new Sink(names[i], layouts[i], number, before, ids);
          for (int rank = 0; rank < size; rank++) {
            sink.add(records, 4 * width * order[rank]);
          }
          marker.append(sink.finish());
        }
      }
      marker.append(" end");
      Path path = new Path(folder, "done/" + number);
      Path temporary = new Path(folder, "done/." + number + "." + System.nanoTime());
      FileSystem files = fileSystem(path);
      FSDataOutputStream stream = files.create(temporary, true);
      stream.write(marker.toString().getBytes("UTF-8"));
      stream.close();
      files.delete(path, false);
      files.rename(temporary, path);
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
    long ids;
    long position;
    FileChannel channel;
    FSDataOutputStream stream;
    Path path;
    Path temporary;

    /**
     * @param before rows of the split before this bucket
     * @param ids ids of the split before it, of a table with bags
     */
    Sink(String name, int[] layout, int bucket, long before, long ids) throws IOException {
      this.name = name;
      this.layout = layout;
      this.width = layout[3] > 0 ? layout[3] : layout[2] - layout[1];
      this.words = new int[Math.max(0, layout[3])];
      this.ids = ids;
      if (layout[3] == OFFSETS) {
        this.position = before == 0 ? 0 : 8 * (1 + before);
        if (before == 0) {
          buffer.putLong(0);
        }
      } else {
        this.position = 4L * (layout[3] < 0 ? ids : width * before);
      }
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

    /** Writes the columns of the record that begins at offset `at` of `records`. */
    void add(ByteBuffer records, int at) throws IOException {
      if (buffer.remaining() < Math.max(8, 4 * width)) {
        flush();
      }
      int first = layout[1];
      int stop = layout[2];
      if (layout[3] < 0) {
        addBag(records, at);
        return;
      }
      if (layout[3] == 0) {
        buffer.put(records.array(), at + 4 * first, 4 * width);
        return;
      }
      for (int word = 0; word < width; word++) {
        words[word] = 0;
      }
      for (int column = first; column < stop; column++) {
        int entry = 4 + 2 * (column - first);
        words[layout[entry]] |= records.getInt(at + 4 * column) << layout[entry + 1];
      }
      for (int word = 0; word < width; word++) {
        buffer.putInt(words[word]);
      }
    }

    /** Writes the ids, the offset or the weights of a bag. */
    private void addBag(ByteBuffer records, int at) {
      int slots = layout[2] - layout[1];
      int first = at + 4 * layout[4];
      int count = 0;
      while (count < slots && records.getInt(first + 4 * count) != NO_ID) {
        count++;
      }
      ids += count;
      if (layout[3] == OFFSETS) {
        buffer.putLong(ids);
      } else {
        buffer.put(records.array(), at + 4 * layout[1], 4 * count);
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
