package dlrm.ingest;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Map;
import java.util.zip.CRC32;
import org.apache.spark.unsafe.types.UTF8String;

/**
 * Parses single lines into rows, which `Layout` describes.
 *
 * <p>A line is good exactly if `Schema.line_pattern` and the ranges stated there say so.
 */
final class LineReader {
  private static final long NO_NUMBER = Long.MIN_VALUE;
  private static final long MAX_UINT32 = 0xFFFFFFFFL;

  /** Slots without a value in the last row, in the first `absentSlots` elements. */
  final int[] absent;

  int absentSlots;

  /** Whether the bag of each table had more ids than its slots in the last row. */
  final boolean[] shortened;

  /** Number of dense values of the last row that were raised to the lowest one allowed. */
  int raised;

  /** Tag of the last row, if there is a split field. */
  int tag;

  private final Fields fields;
  private final Layout layout;
  private final Map texts;
  private final CRC32 crc = new CRC32();
  private ByteBuffer chunk;
  private int row;

  /** @param texts the number of each known text, by the result of `KnownTexts.key` */
  LineReader(Fields fields, Layout layout, Map texts) {
    this.fields = fields;
    this.layout = layout;
    this.texts = texts;
    this.absent = new int[layout.slots];
    this.shortened = new boolean[layout.bags.length];
  }

  /**
   * Parses a line and writes its numbers as a row; returns whether the line is good.
   *
   * @param line the bytes of the line
   * @param length the number of bytes to parse
   * @param chunk the rows
   * @param row the offset in `chunk` at which this row begins
   */
  boolean read(byte[] line, int length, ByteBuffer chunk, int row) {
    this.chunk = chunk;
    this.row = row;
    absentSlots = 0;
    raised = 0;
    for (int at = layout.missing(0); at < layout.rowBytes; at += 4) {
      chunk.putInt(row + at, 0);
    }
    int last = fields.roles.length - 1;
    int start = 0;
    for (int field = 0; field <= last; field++) {
      int stop = start;
      while (stop < length && line[stop] != fields.delimiter) {
        stop++;
      }
      if ((stop == length) != (field == last) || !take(field, line, start, stop)) {
        return false;
      }
      start = stop + 1;
    }
    return !fields.anyText || isText(line, length);
  }

  private boolean isText(byte[] line, int length) {
    for (int i = 0; i < length; i++) {
      if (line[i] < 0) {
        return UTF8String.fromBytes(line, 0, length).isValid();
      }
    }
    return true;
  }

  private boolean take(int field, byte[] line, int start, int stop) {
    if (fields.kinds[field] == Fields.TEXT && fields.quotes && start < stop && line[start] == '"') {
      return false;
    }
    switch (fields.roles[field]) {
      case Fields.LABEL:
        long label = integer(line, start, stop, true);
        chunk.putInt(row, (int) label);
        return label == 0 || label == 1;
      case Fields.DENSE:
        if (fields.kinds[field] == Fields.FLOAT) {
          return decimal(field, line, start, stop);
        }
        return dense(field, start == stop ? 0 : integer(line, start, stop, true));
      case Fields.CATEGORICAL:
        return category(field, line, start, stop);
      case Fields.SHORTENED:
        shortened[fields.columns[field]] = line[start] == '1';
        return true;
      case Fields.SPLIT:
        tag = tagOf(line, start, stop);
        return true;
      default:
        return true;
    }
  }

  private boolean dense(int field, long number) {
    if (number != (int) number) {
      return false;
    }
    if (number < fields.limits[field]) {
      raised++;
      number = fields.limits[field];
    }
    chunk.putInt(row + 4 * (1 + fields.columns[field]), (int) number);
    return true;
  }

  /** Writes the bits of a float32; the text comes from `column_lines.py`, or is of a bad line. */
  private boolean decimal(int field, byte[] line, int start, int stop) {
    float number;
    try {
      number = start == stop ? 0 : Float.parseFloat(new String(line, start, stop - start, StandardCharsets.UTF_8));
    } catch (NumberFormatException error) {
      return false;
    }
    chunk.putInt(row + 4 * (1 + fields.columns[field]), Float.floatToRawIntBits(number));
    return true;
  }

  private boolean category(int field, byte[] line, int start, int stop) {
    int slot = fields.columns[field];
    long value = 0;
    if (start == stop) {
      absent[absentSlots++] = slot;
      if (!fields.missingIsValue) {
        int word = row + layout.missing(slot);
        chunk.putInt(word, chunk.getInt(word) | 1 << (slot & 31));
      }
    } else if (fields.kinds[field] == Fields.HEX) {
      if (stop - start > 8) {
        return false;
      }
      for (int i = start; i < stop; i++) {
        int digit = digit(line[i]);
        if (digit < 0) {
          return false;
        }
        value = value << 4 | digit;
      }
    } else if (fields.kinds[field] == Fields.INTEGER) {
      value = integer(line, start, stop, false);
      if (value == NO_NUMBER) {
        return false;
      }
    } else if (fields.kinds[field] == Fields.KNOWN) {
      String text = new String(line, start, stop - start, StandardCharsets.US_ASCII);
      value = ((Long) texts.get(KnownTexts.key(layout.tables[slot], text))).longValue();
    } else {
      crc.reset();
      crc.update(line, start, stop - start);
      value = crc.getValue();
    }
    if (fields.limits[field] > 0) {
      value %= fields.limits[field];
    }
    chunk.putInt(row + layout.value(slot), (int) value);
    return true;
  }

  private int tagOf(byte[] line, int start, int stop) {
    for (int i = 0; i < fields.tags.length; i++) {
      if (Arrays.equals(line, start, stop, fields.tagTexts[i], 0, fields.tagTexts[i].length)) {
        return fields.tags[i];
      }
    }
    return 0;
  }

  private static int digit(byte character) {
    if (character >= '0' && character <= '9') {
      return character - '0';
    }
    int lower = character | 0x20;
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
  }

  /** Parses `[0-9]+`, or `-?[0-9]+` if signed; NO_NUMBER for other text and beyond 32 bits. */
  private static long integer(byte[] line, int start, int stop, boolean signed) {
    boolean negative = signed && start < stop && line[start] == '-';
    int first = negative ? start + 1 : start;
    if (first == stop) {
      return NO_NUMBER;
    }
    long number = 0;
    for (int i = first; i < stop; i++) {
      int digit = line[i] - '0';
      if (digit < 0 || digit > 9) {
        return NO_NUMBER;
      }
      number = 10 * number + digit;
      if (number > MAX_UINT32) {
        return NO_NUMBER;
      }
    }
    return negative ? -number : number;
  }
}
