"""What the converters share: reading, checking, de-duplication, decontamination, writing."""
