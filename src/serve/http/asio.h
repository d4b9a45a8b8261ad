// Boost.Asio for the files of this folder: compiled once (asio.cc), without its older names.
#pragma once

#define BOOST_ASIO_SEPARATE_COMPILATION
#define BOOST_ASIO_NO_DEPRECATED

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <string_view>

namespace still {
namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;

// By name and number: the category's address is not the same in every library.
inline bool is_end_of_stream(const ErrorCode& problem) {
  return problem.value() == static_cast<int>(asio::error::eof) &&
         std::string_view(problem.category().name()) == "asio.misc";
}
}  // namespace still
