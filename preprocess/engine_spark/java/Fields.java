package dlrm.ingest;

import java.io.Serializable;

/** Describes the fields of a line and how the rules convert them. */
final class Fields implements Serializable {
  private static final long serialVersionUID = 1L;

  static final int LABEL = 0;
  static final int DENSE = 1;
  static final int CATEGORICAL = 2;
  static final int SPLIT = 3;
  static final int SHORTENED = 4;
  static final int INTEGER = 0;
  static final int HEX = 1;
  static final int TEXT = 2;
  static final int FLOAT = 3;
  static final int KNOWN = 4;

  final byte delimiter;
  final boolean quotes;
  final boolean missingIsValue;
  final boolean anyText;
  final boolean anySplit;
  final int[] roles;
  final int[] kinds;
  final int[] columns;
  final int[] limits;
  final byte[][] tagTexts;
  final int[] tags;

  /**
   * @param delimiter the character between fields
   * @param quotes whether text that begins with a quote is bad
   * @param missingIsValue whether a missing category is the value 0
   * @param fields a line for each field: its role, its kind, its column, its slot or the table
   *     whose bag it says to be shortened, and the lowest value of a dense field or the modulus of
   *     a categorical one (0 for none)
   * @param tags a line for each text of the split field: its tag and its bytes in hexadecimal
   */
  Fields(String delimiter, boolean quotes, boolean missingIsValue, String fields, String tags) {
    this.delimiter = (byte) delimiter.charAt(0);
    this.quotes = quotes;
    this.missingIsValue = missingIsValue;
    String[] lines = fields.split("\n");
    this.roles = new int[lines.length];
    this.kinds = new int[lines.length];
    this.columns = new int[lines.length];
    this.limits = new int[lines.length];
    boolean text = false;
    boolean split = false;
    for (int i = 0; i < lines.length; i++) {
      long[] numbers = Numbers.parse(lines[i]);
      roles[i] = (int) numbers[0];
      kinds[i] = (int) numbers[1];
      columns[i] = (int) numbers[2];
      limits[i] = (int) numbers[3];
      text |= kinds[i] == TEXT;
      split |= roles[i] == SPLIT;
    }
    this.anyText = text;
    this.anySplit = split;
    lines = tags.isEmpty() ? new String[0] : tags.split("\n");
    this.tags = new int[lines.length];
    this.tagTexts = new byte[lines.length][];
    for (int i = 0; i < lines.length; i++) {
      int space = lines[i].indexOf(' ');
      this.tags[i] = Integer.parseInt(lines[i].substring(0, space));
      this.tagTexts[i] = bytes(lines[i].substring(space + 1));
    }
  }

  private static byte[] bytes(String hexadecimal) {
    byte[] bytes = new byte[hexadecimal.length() / 2];
    for (int i = 0; i < bytes.length; i++) {
      bytes[i] = (byte) Integer.parseInt(hexadecimal.substring(2 * i, 2 * i + 2), 16);
    }
    return bytes;
  }
}
