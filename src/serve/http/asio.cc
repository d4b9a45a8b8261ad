// Boost.Asio's own code, once.
#include "serve/http/asio.h"
// After the macros above.
#include <boost/asio/impl/src.hpp>
#include <boost/asio/ssl/impl/src.hpp>
