// Boost.Asio for the files of this folder: compiled once (asio.cc), without its older names.
#pragma once

#define BOOST_ASIO_SEPARATE_COMPILATION
#define BOOST_ASIO_NO_DEPRECATED

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>

namespace still {
namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;
}  // namespace still
