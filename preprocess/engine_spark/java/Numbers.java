package dlrm.ingest;

/** Parses numbers that the driver passes as text, separated by spaces. */
final class Numbers {
  private Numbers() {}

  static long[] parse(String text) {
    if (text.isEmpty()) {
      return new long[0];
    }
    String[] words = text.split(" ");
    long[] numbers = new long[words.length];
    for (int i = 0; i < words.length; i++) {
      numbers[i] = Long.parseLong(words[i]);
    }
    return numbers;
  }
}
