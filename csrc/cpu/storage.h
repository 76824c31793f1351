// Picks the copy of a kernel template <class T, int kChannels> for a storage type and a number of channels (0: any
// number). Besides the usual widths: 1, a signed distance, and 17, 16 features and their weight, as the memory keeps.
#pragma once

#if defined(EW_FEW_CHANNELS)  // sanitizer builds: the other widths differ in nothing but the constant
#define EW_DISPATCH_CHANNELS(channels, kernel, T, ...) \
  return channels == 16 ? kernel<T, 16>(__VA_ARGS__) : kernel<T, 0>(__VA_ARGS__);
#else
#define EW_DISPATCH_CHANNELS(channels, kernel, T, ...) \
  switch (channels) {                                  \
    case 1:                                            \
      return kernel<T, 1>(__VA_ARGS__);                \
    case 4:                                            \
      return kernel<T, 4>(__VA_ARGS__);                \
    case 8:                                            \
      return kernel<T, 8>(__VA_ARGS__);                \
    case 16:                                           \
      return kernel<T, 16>(__VA_ARGS__);               \
    case 17:                                           \
      return kernel<T, 17>(__VA_ARGS__);               \
    case 32:                                           \
      return kernel<T, 32>(__VA_ARGS__);               \
    case 64:                                           \
      return kernel<T, 64>(__VA_ARGS__);               \
    default:                                           \
      return kernel<T, 0>(__VA_ARGS__);                \
  }
#endif

#define EW_DISPATCH_STORAGE(storage, channels, kernel, ...)         \
  switch (storage) {                                                \
    case Storage::float32:                                          \
      EW_DISPATCH_CHANNELS(channels, kernel, float, __VA_ARGS__)    \
    case Storage::float16:                                          \
      EW_DISPATCH_CHANNELS(channels, kernel, Half, __VA_ARGS__)     \
    case Storage::bfloat16:                                         \
      EW_DISPATCH_CHANNELS(channels, kernel, BFloat16, __VA_ARGS__) \
  }
