"""What many tests share: fakes, a scripted Gemini at the wire, servers that the tests start, a browser."""
