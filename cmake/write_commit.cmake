# Writes OUT: #define STILL_COMMIT "abc1234", or "unknown" outside a git checkout.  cmake -DSOURCE=... -DOUT=... -P write_commit.cmake
execute_process(COMMAND git -C ${SOURCE} rev-parse --short=12 HEAD OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE
                ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  set(commit unknown)
endif()
file(WRITE ${OUT} "// Made by cmake/write_commit.cmake.\n#define STILL_COMMIT \"${commit}\"\n")
